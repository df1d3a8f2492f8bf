"""The report of a run: facts about it, charts from them, a page and pictures from these."""
