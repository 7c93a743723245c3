"""Parity: is what runs the model that was trained?"""
