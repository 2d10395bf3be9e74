"""How far a judge can be believed: against itself, against other judges, against people.

evidence.py                the pairs that judges share, from the store
habits.py, ranking.py      position, length and self preference; how judges rank the models
agreement.py               the report of a run's judges
gold.py, calibration.py    verdicts of people, and the report of judges against them
alternative_annotator.py   whether a judge may take a person's place
prediction_powered.py      what people would say, from all of a judge and a few of them
abstention.py, escalation.py   from which confidence on to believe, and whom to ask below it
consistency.py             whether two judges rank the same answers alike
"""
