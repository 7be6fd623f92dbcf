import time, torch
from sde_diffusers import NCSNppUNet2DModel
from sde_diffusers.optimization import versions
import inspect
print(inspect.signature(NCSNppUNet2DModel.__init__))
n=NCSNppUNet2DModel(sample_size=8,base_channels=8) if 'base_channels' in inspect.signature(NCSNppUNet2DModel.__init__).parameters else NCSNppUNet2DModel()
def old(network): return [(p.data_ptr(), p.device, p._version) for p in network.parameters() if not p.is_inference()]
for f in (old,versions):
    f(n); a=time.process_time()
    for _ in range(50): f(n)
    print(f.__name__, (time.process_time()-a)/50*1e3,'ms', len(list(n.parameters())), len(list(n.modules())))
# hook semantic
v=versions(n); 
h=n.register_forward_hook(lambda *a: None); assert versions(n)!=v; h.remove(); assert versions(n)==v
try:
    c=torch.nn.utils.parametrizations.weight_norm
except Exception as e: print(e)
