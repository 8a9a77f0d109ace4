"""A traced model → a float .tflite file: conversion, signatures, and what the finished file says of itself."""
