"""The rules over evidence: pure functions that yield findings, by subject.

``registry`` lists them, and finds those that other packages bring.
"""
