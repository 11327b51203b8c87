"""What `constellation benchmark` measures: one file each, with its function, its table and its metric names."""
