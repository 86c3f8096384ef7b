"""VideoCrafter2: a text-to-video latent diffusion model with a 3-D UNet that predicts the noise.

Source: Chen et al., "VideoCrafter2: Overcoming Data Limitations for High-Quality Video Diffusion Models", 2024.
"""
