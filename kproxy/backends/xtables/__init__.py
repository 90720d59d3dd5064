"""The language of iptables, for every mode that speaks it: typed rules, text, tools, variants."""
