"""The AWS API of the lab: moto in this process, with the behaviour of AWS that moto leaves out put back."""
