#include "quant/quant_table.h"
