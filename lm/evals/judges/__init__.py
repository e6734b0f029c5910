"""Judges that grade answers: rules, our own classifier, or a model behind an endpoint."""
