"""The source of a bundle: is it still the one, what does its model compute, and how far may rounding be off?"""
