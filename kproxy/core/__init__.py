"""What this node should do. No I/O here: nothing in this package opens, reads or runs anything.

``objects`` are the frozen inputs, ``tracker`` remembers them and what changed, ``slices`` joins
EndpointSlices into endpoints, ``topology`` chooses among them, ``snapshot`` is the frozen plan,
``diff`` compares two plans. ``decode`` alone spells Kubernetes field names.
"""
