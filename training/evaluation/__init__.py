"""What a trained model is worth: samples, feature networks, distances, likelihoods, pages."""
