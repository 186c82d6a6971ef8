"""A real Kubernetes on one bare Debian machine, for the demo and for the tests.

It starts the programs that a production cluster runs, unchanged, in a network namespace of their own. It never
touches the machine's own iptables, containers or services, and it ends only processes that it started.
"""
