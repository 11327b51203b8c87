"""A value model that is taught on simulated worlds alone and answers about data it has never seen."""
