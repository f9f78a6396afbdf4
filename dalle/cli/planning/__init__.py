"""Plans of trainings, before they are begun."""
