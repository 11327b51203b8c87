"""From raw tables to ragged batches: sources, store, windows, vocabulary, batch, decisions."""
