"""Who gets which engagement, when shared limits bind: constraints, prices, exact solutions, and the plan in words."""
