-- Start-time fair queueing in one sorted set: rank = class * 2^48 + tag.
--   tag = max(V[class], last[class, tenant]); last = tag + charge; charge = cost / weight, at least 2
-- V[class] is one more than the largest tag dispatched in that class; it never decreases. The one more
-- keeps newcomers from passing those who have waited at the same tag, and the charge of 2 still lets them
-- pass a tenant's next job. One V per class: traffic of a high class must not push the newcomers of a low
-- one behind its backlog. A tenant with last <= V owes nothing, and is the same as one that is not there.

local CLASS = 2 ^ 48
local MAX_CHARGE = 2 ^ 31 -- no single job can carry its tenant into the next class

local function virtual_time(root, class)
  return number(redis.call('HGET', key(root, 'state'), 'V:' .. class), 0)
end

local function fair_charge(root, class, tenant, tag, cost, weight)
  local who = class .. ':' .. tenant
  local charge = math.min(math.max(2, math.floor(tonumber(cost) / tonumber(weight))), MAX_CHARGE)
  if redis.call('HSET', key(root, 'fair'), 'last:' .. who, tag + charge, 'tag:' .. who, tag) > 0 then
    redis.call('PEXPIRE', key(root, 'fair'), DAY_MS) -- it may be new; the reaper renews it
  end
end

local function fair_rank(root, class, tenant, cost, weight)
  local last = number(redis.call('HGET', key(root, 'fair'), 'last:' .. class .. ':' .. tenant), 0)
  local tag = math.max(virtual_time(root, class), last)
  fair_charge(root, class, tenant, tag, cost, weight)
  return class * CLASS + tag
end

local function fair_parts(rank)
  local class = math.floor(rank / CLASS)
  return class, rank - class * CLASS
end

-- The true cost of an ended job corrects what the tenant pays next, never the order of what waits:
-- `last` stays above the tag that was given out last.
local function fair_correct(root, class, tenant, difference, weight)
  local fair, who = key(root, 'fair'), class .. ':' .. tenant
  local pair = redis.call('HMGET', fair, 'last:' .. who, 'tag:' .. who)
  if pair[1] and number(pair[1], 0) > virtual_time(root, class) then
    local last = number(pair[1], 0) + math.floor(difference / weight)
    redis.call('HSET', fair, 'last:' .. who, math.max(last, number(pair[2], 0) + 2))
  end
end

local FEW = 16 -- fields that are not worth looking through

-- Forget two random tenants that have caught up with V: amortised over the submits, the hash stays as
-- small as the number of tenants that are ahead.
local function fair_prune(root)
  local fair = key(root, 'fair')
  if redis.call('HLEN', fair) <= FEW then
    return
  end
  for _, field in ipairs(redis.call('HRANDFIELD', fair, 2)) do
    local class, tenant = string.match(field, '^%a+:(%d+):(.*)$')
    if class then
      local last = number(redis.call('HGET', fair, 'last:' .. class .. ':' .. tenant), 0)
      if last <= virtual_time(root, class) then
        redis.call('HDEL', fair, 'last:' .. class .. ':' .. tenant, 'tag:' .. class .. ':' .. tenant)
      end
    end
  end
end
