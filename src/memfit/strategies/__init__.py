"""The forms that a schedule may take, and what each costs in memory and time."""
