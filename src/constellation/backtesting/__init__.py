"""Rolling origins: every system refitted at each, scored on what came after, and one league table of them all."""
