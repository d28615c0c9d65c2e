"""Child speech: what did the child say?"""
