"""Very many images: shards that are done once each, by any number of processes or machines."""
