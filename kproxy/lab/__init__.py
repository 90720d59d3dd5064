"""The laboratory: topologies and scenarios become namespaces, links, pods and real traffic."""
