"""One of each extension point of SafeDraft, each as short as it can be."""
