"""A club of customers with tastes, moods and patience, in which contacts help some and hurt others, by known rules."""
