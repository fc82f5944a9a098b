"""Products under a recipe: which formats, tiles, engine and promotion a GEMM uses in each role."""

from lowprec.gemm.gemm import gemm as gemm
from lowprec.gemm.linear import linear as linear
from lowprec.gemm.preparation import Preparation as Preparation
from lowprec.gemm.prepare import prepare as prepare
from lowprec.gemm.prepared import Prepared as Prepared
from lowprec.gemm.recipe import Delayed as Delayed
from lowprec.gemm.recipe import OperandPair as OperandPair
from lowprec.gemm.recipe import Recipe as Recipe
from lowprec.gemm.recipe import get_recipe as get_recipe
from lowprec.gemm.recipe import list_recipes as list_recipes
from lowprec.gemm.sharded import sharded_gemm as sharded_gemm
