"""What is measured: a module for each group, all of the shape of :mod:`~.base`."""
