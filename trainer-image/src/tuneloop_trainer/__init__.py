"""The stages of a FineTuneJob as they run in pods: fetch, check, train, publish.

One readable module a stage; everything else here is a small part that one of them uses. Never imports the operator.
"""
