"""The zoo: what its models cost, and the tables of the READMEs, written from the metafiles."""
