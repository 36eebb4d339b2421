from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput


class City(BaseModel):
    name: str
    country: str


agent = Agent("openai-chat:qwen2.5-coder", output_type=NativeOutput(City))
print(agent.run_sync("In which city is the Eiffel Tower?").output)
