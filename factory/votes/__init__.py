"""Many judges' votes on one pair become one verdict.

aggregation.py   majority and weighted votes, and the registry of methods
latent.py        the truth as a latent class: one-coin, Dawid-Skene
dependence.py    judges that err together, and how many they are worth
reliability.py   coefficients of agreement of a table of votes, with intervals
"""
