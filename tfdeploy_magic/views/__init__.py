"""Results as people see them: figures, HTML without JavaScript, and a plain-text twin. Nothing is computed here."""
