"""What to do next, and what the logs say about doing so: policies, off-policy estimates, verdicts, uplift.

Letters as in the house: ``Q`` decisions, ``A`` actions, ``X`` features of a decision, ``M`` members of an ensemble.
"""
