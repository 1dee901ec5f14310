"""The pages, one module each. A page reads what it shows and returns an `Answer`, as markup and as a document."""
