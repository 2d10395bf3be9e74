"""Numbers with their uncertainty: no rows of the store, no models.

intervals.py              for rates, means and differences, clustered by prompt
confidence_sequences.py   intervals that hold at every look
coefficients.py           of agreement: kappa, alpha, AC1 and the like
clusters.py               means and regressions of what hangs together, in closed form
quantiles.py              of the normal and of Student's t
"""
