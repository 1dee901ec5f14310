"""Pure folds and decisions: no database, no clock; time is an argument."""
