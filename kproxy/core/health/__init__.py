"""Health of endpoints as values and rules: what is checked, what the results mean, who may serve.

Pure like all of the core. :mod:`kproxy.health` checks, listens to the data path, and sends what it
finds here as observations.
"""
