"""Parts of a run's page that are made by themselves: how it keeps up with the run, and what a prior's layers see."""
