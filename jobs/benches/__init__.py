"""Benches: figures of the embedded model, of published models and of clusters. `miga bench --help` names them."""
