"""The project's labelled atlas, built at run time from templates that pip packages carry."""
