"""Full scan of a dataset: what is wrong with its files, and how to mend it."""
