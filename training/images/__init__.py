"""Training images: found, decoded, ordered and served. Imports nothing of the other wings."""
