"""The doors to the kernel: one module each for namespaces, netlink, processes and sysctls."""
