"""The parts of tools/study_budgets.py."""
