"""Simulated hospitals: anatomy, shape, scanner, subjects, and their site folders."""
