"""What commands, benches and runs have in common: exit statuses, values of options, tables."""
