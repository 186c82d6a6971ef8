"""The only code that talks to the API server and to our pods: one HTTP session, raw JSON, the Lease.

Never decides anything.
"""
