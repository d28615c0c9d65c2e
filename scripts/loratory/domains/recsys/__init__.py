"""Recommendation: does this user like this film, given the films rated before it?"""
