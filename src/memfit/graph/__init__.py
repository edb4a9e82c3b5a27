"""The nouns: training graphs, schedules, a schedule's memory over time, plans, and their files."""
