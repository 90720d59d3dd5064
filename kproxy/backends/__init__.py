"""The modes. ``base`` is the contract, ``fake`` an in-memory kernel, one folder for each mode."""
