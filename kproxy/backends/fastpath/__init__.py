"""fastpath mode: kproxy's own packet engine between the node and its pods."""
