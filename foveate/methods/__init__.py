"""One file a method. None imports another, a model or an adapter."""
